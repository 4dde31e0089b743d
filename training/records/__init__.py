"""Record runs on screen, in logs and in TensorBoard, and read them back."""
