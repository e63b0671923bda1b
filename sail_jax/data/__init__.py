"""Turns a user's raw export into batches of arrays for the device."""
