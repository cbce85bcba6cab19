"""Tools: functions that `diffrl NAME` runs."""
