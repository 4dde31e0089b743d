"""What a run tells: its screen and its log, TensorBoard, and runs read back."""
