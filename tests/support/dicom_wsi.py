"""A DICOM whole-slide image as scanners write it: one file a level, JPEG frames, plus a label that must not be used."""

from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import JPEGBaseline8Bit, generate_uid

SOP_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
TILE = 256
PRIVATE = {
    "PatientName": "DOE^JANE",
    "PatientID": "MRN-55501",
    "PatientBirthDate": "19610317",
    "AccessionNumber": "ACC-0044721",
    "StudyDate": "20190823",
    "AcquisitionDateTime": "20190823141533",
    "InstitutionName": "St Elsewhere",
    "OperatorsName": "QUINCY^ADAMS",
    "DeviceSerialNumber": "SN-660177",
    "ContainerIdentifier": "S19-0044721-A1",
    "BarcodeValue": "BC-0044721",
    "SeriesDescription": "JANE DOE LEFT BREAST",
}
"""Tags that name a patient, a day, a person, a place or one machine."""
MAGENTA = (250, 20, 240)
"""Of labels and macro images: a colour that no tissue has."""


def write_dicom_slide(folder: Path, levels: list[np.ndarray], mpp: float) -> list[Path]:
    """Write (h, w, 3) uint8 pictures, level 0 first at `mpp` um/px, as one series; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = {name: generate_uid() for name in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")}
    paths = []
    for number, pixels in enumerate(levels):
        scale = levels[0].shape[1] / pixels.shape[1]
        kind = (
            ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"] if number == 0 else ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]
        )
        paths.append(_write(folder / f"level{number}.dcm", pixels, mpp * scale, kind, ids))
    label = np.full((300, 300, 3), MAGENTA, np.uint8)
    paths.append(_write(folder / "label.dcm", label, 50.0, ["ORIGINAL", "PRIMARY", "LABEL", "NONE"], ids))
    return paths


def _write(path: Path, pixels: np.ndarray, mpp: float, kind: list[str], ids: dict[str, str]) -> Path:
    height, width = pixels.shape[:2]
    frames = [
        imagecodecs.jpeg8_encode(np.ascontiguousarray(_tile(pixels, x, y)), level=95, subsampling="444")
        for y in range(0, height, TILE)
        for x in range(0, width, TILE)
    ]
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = SOP_CLASS
    data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data.SOPClassUID, data.SOPInstanceUID = SOP_CLASS, data.file_meta.MediaStorageSOPInstanceUID
    for name, uid in ids.items():
        setattr(data, name, uid)
    data.Modality, data.ImageType = "SM", kind
    for name, value in PRIVATE.items():
        setattr(data, name, value)
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = width, height
    data.Rows = data.Columns = TILE
    data.NumberOfFrames = len(frames)
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "YBR_FULL_422", 0
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.DimensionOrganizationType = "TILED_FULL"
    data.ImagedVolumeWidth, data.ImagedVolumeHeight = width * mpp / 1000, height * mpp / 1000
    data.ManufacturerModelName = "Testscanner"
    data.LossyImageCompression, data.InstanceNumber = "01", 1
    measures, groups = Dataset(), Dataset()
    measures.PixelSpacing = [mpp / 1000, mpp / 1000]
    groups.PixelMeasuresSequence = Sequence([measures])
    data.SharedFunctionalGroupsSequence = Sequence([groups])
    optics = Dataset()
    optics.ObjectiveLensPower = 40
    data.OpticalPathSequence = Sequence([optics])
    data.PixelData = encapsulate([bytes(frame) for frame in frames])
    data["PixelData"].is_undefined_length = True
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path


def _tile(pixels: np.ndarray, x: int, y: int) -> np.ndarray:
    piece = pixels[y : y + TILE, x : x + TILE]
    return np.pad(piece, ((0, TILE - piece.shape[0]), (0, TILE - piece.shape[1]), (0, 0)), mode="edge")
