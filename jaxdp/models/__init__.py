"""The networks by name, each as `module:function`, so that a config can be checked without importing one."""

MODELS = {
    "cnn": "jaxdp.models.tiny:CNN",
    "googlenet": "jaxdp.models.googlenet:GoogLeNetAsItWas",
    "googlenet_bn": "jaxdp.models.googlenet:GoogLeNetBN",
    "nin": "jaxdp.models.nin:NetworkInNetwork",
    "resnet": "jaxdp.models.resnet:ResNet",
    "resnet18": "jaxdp.models.resnet:ResNet18",
    "resnet34": "jaxdp.models.resnet:ResNet34",
    "resnet50": "jaxdp.models.resnet:ResNet50",
    "resnet101": "jaxdp.models.resnet:ResNet101",
    "resnet152": "jaxdp.models.resnet:ResNet152",
}
