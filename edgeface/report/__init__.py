"""Scorecards and the HTML report."""
