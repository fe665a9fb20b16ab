"""CIFAR-100's archive, with its 100 fine labels or its 20 coarse ones.

Size and MD5 of the archive, and the MD5s of its members, are those that torchvision 0.29 checks
(torchvision/datasets/cifar.py). Label i is called what ``meta`` says: written out as Python 2
pickles them, these names give the MD5 of that file.
"""

from __future__ import annotations

from dataclasses import replace

from cifar_lab.data.fetch.archive import Archive

FINE_CLASSES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach
    couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster
    house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
    pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket
    rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
    sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip
    turtle wardrobe whale willow_tree wolf woman worm
    """.split()  # noqa: SIM905  # a literal would be a line for each
)
COARSE_CLASSES = tuple(
    """
    aquatic_mammals fish flowers food_containers fruit_and_vegetables
    household_electrical_devices household_furniture insects large_carnivores
    large_man-made_outdoor_things large_natural_outdoor_scenes
    large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles
    small_mammals trees vehicles_1 vehicles_2
    """.split()  # noqa: SIM905  # a literal would be a line for each
)
FINE = Archive(
    name="cifar-100-python.tar.gz",
    size=169_001_437,
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    members={
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
    folder="cifar-100-python",
    dataset="cifar100",
    title="CIFAR-100",
    classes=FINE_CLASSES,
    labels="fine_labels",
    test="test",
    meta="meta",
)


def coarse(archive: Archive) -> Archive:
    """The same archive, read with its coarse labels."""
    return replace(
        archive,
        dataset="cifar100_coarse",
        classes=COARSE_CLASSES,
        labels="coarse_labels",
        variant="-coarse",
    )


COARSE = coarse(FINE)
