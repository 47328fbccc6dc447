"""The values and the contract."""
