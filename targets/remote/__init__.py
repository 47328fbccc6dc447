"""Measuring on a device that is reached by SSH or adb: an agent is copied there, and runs the one measuring loop.

`address` names a device, `ssh` and `adb` start an agent on it, `bundle` makes that agent's one file, `agent` is what runs
there, `line` is this side of the conversation, and `site` makes of it all a place that measurements are made in.
"""
