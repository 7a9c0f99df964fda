"""The networks by name, each as `module:function`, so that a config can be checked without importing one."""

MODELS = {
    "cnn": "jaxdp.models.tiny:CNN",
    "resnet": "jaxdp.models.resnet:ResNet",
    "resnet18": "jaxdp.models.resnet:ResNet18",
}
