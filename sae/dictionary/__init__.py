"""What is learned: tensors in, tensors out. It knows no run, no rank and no file."""
