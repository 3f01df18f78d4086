"""timm nets for small faces: build, adapt, preprocess, views, run, write as pt2 and ONNX."""
