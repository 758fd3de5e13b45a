"""The same pipeline on Kubeflow Pipelines and Vertex AI."""
