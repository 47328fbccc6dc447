"""Distillation objectives: pure functions, tensors in, one value per example out."""
