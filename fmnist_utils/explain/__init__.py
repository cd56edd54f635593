"""What a prediction rests on: where the network looked (Grad-CAM), and whether it knows such images (outliers)."""
