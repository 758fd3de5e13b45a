"""What the stock TFX components and the servable run: features, preprocessing, towers, retrieval, evaluation."""
