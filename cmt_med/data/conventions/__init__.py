"""The names and numbers of brain-tumour data sets."""
