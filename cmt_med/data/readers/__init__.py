"""Files of many formats to voxels and a header, strictly: formats and their readers, and the process that decodes for us."""
