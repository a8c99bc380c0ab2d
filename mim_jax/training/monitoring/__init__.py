"""What a run shows of itself: metrics, console, TensorBoard, W&B, the report."""
