"""Devices and their runtimes: what can be built for, loaded, run and measured."""

from kdc.core import telemetry

telemetry.turn_off()
