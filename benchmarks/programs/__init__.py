"""What our rate is held against: small programs, each a process of its own.

All train the same network with the same optimizer (both composed from conf/) on the same images
without augmentation, make the same number of steps before the clock starts as `cifar_lab.training`
does, and print one line of JSON at the end.
"""
