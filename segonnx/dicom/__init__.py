"""From a DICOM series to a volume, and from a label map of it to DICOM SEG and RTSTRUCT. Networks are no matter."""
