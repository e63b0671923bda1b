"""Says what a folder of data holds, and writes the experiment that reads it."""
