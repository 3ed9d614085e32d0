"""Corpora, crops and augmentation: from labelled pictures to batches."""
