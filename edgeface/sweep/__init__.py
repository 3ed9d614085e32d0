"""Sweeps: many students under one teacher, each a run of its own, shared by as many processes as like to help."""
