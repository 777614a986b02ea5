"""What becomes of bfloat16 outside of the tile unit: NHWC, channels in whole vectors of 8."""
