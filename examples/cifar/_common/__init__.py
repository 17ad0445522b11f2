"""Code that the scripts of this folder share: flags, images, networks, the folder of a run."""
