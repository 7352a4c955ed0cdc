"""FP8 from a bfloat16 checkpoint: SmoothQuant over a calibration set (spec section 5.7)."""
