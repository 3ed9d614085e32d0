"""Stage 3: converters, runners, bundles, parity and speed."""
