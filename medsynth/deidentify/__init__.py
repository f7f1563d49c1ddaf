"""De-identification by default-deny: a data set is not stripped of what looks dangerous, it is rebuilt from what is known to be safe.

`profile` holds PS3.15 Annex E as data, `dataset` the rebuild of one data set, `pixels` what is decoded and written back, `burned_in` the
search for text in pixels, `faces` the question whether an image shows one, `image` all of it for one file, `folder` for an archive.
"""
