"""The nine axes of a method, one folder each. A part never imports another axis, and never imports Ray."""
