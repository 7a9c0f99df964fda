"""The table of networks. Each is given as `module:name`, so that checking a config imports none of them."""

MODELS = {
    "cnn": "jaxdp.models.tiny:CNN",
    "googlenet": "jaxdp.models.googlenet:GoogLeNetOriginal",
    "googlenet_bn": "jaxdp.models.googlenet:GoogLeNetBN",
    "nin": "jaxdp.models.nin:NetworkInNetwork",
    "resnet": "jaxdp.models.resnet:ResNet",
    "resnet18": "jaxdp.models.resnet:ResNet18",
    "resnet34": "jaxdp.models.resnet:ResNet34",
    "resnet50": "jaxdp.models.resnet:ResNet50",
    "resnet101": "jaxdp.models.resnet:ResNet101",
    "resnet152": "jaxdp.models.resnet:ResNet152",
}
