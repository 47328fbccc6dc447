"""Devices and their runtimes: what can be built for, loaded, run and measured."""
