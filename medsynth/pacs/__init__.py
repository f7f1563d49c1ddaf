"""Archives on a network (PACS): series are fetched from one, and released cohorts sent to one.

`transfer` owns what outlives a connection: retries with longer and longer pauses, and journals, so that what arrived is not moved again.
`dimse` and `web` speak to an archive, each as an `Archive`. Nothing here prints a value of a patient's header.
"""
