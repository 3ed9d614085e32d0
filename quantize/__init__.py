"""Stage 2: the integer grid, its simulator, fake-quant, calibration and quantization-aware training."""
