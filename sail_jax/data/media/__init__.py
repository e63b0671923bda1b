"""Pictures, sound and video: decoded, checked and resampled."""
