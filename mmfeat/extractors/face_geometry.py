"""Where a head is, where its eyes look, and how its face moves, from mesh points in pixels.

Axes are the camera's, as OpenFace has them: x to the image's right, y down, z away from the camera. Lengths are
millimetres of an average face. All functions take N frames at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from mmfeat.extractors.face_points import IBUG_68, IBUG_NEXT, IBUG_SHARE, LEFT_LIDS, RIGHT_LIDS, RIGID, RIGID_FACE

Floats = NDArray[np.floating]

# Of an adult eye: the iris moves on a sphere of this radius, whose centre lies here as seen from the middle of the
# lids' corners: towards the temple, up, and back. The first two hold for the corners as the iris net places them, and
# make the lines of sight of people who face a camera meet near it, as eyes converge on what they look at.
_IRIS_ORBIT = 12.0
_EYE_CENTRE = (2.0, 1.2, 6.0)
_CORNERS = (33, 133, 263, 362)


@dataclass(frozen=True, eq=False)
class Faces:
    """One face in N frames, in pixels of the frame."""

    mesh: Floats
    """Shape (N, 468, 3): the mesh, its eyelids replaced by the iris net's; z grows away from the camera."""
    iris: Floats
    """Shape (N, 2, 2): centres of the right and the left iris."""
    size: tuple[int, int]
    """Width and height of the frame."""


@dataclass(frozen=True, eq=False)
class Pose:
    rotation: Floats
    """Shape (N, 3, 3): from the head's axes to the camera's."""
    translation: Floats
    """Shape (N, 3): from the camera to the head's origin, in millimetres."""
    camera: Floats
    """Shape (3, 3): the assumed camera matrix."""


def camera_matrix(width: int, height: int) -> Floats:
    """OpenFace's guess where nothing is known of the camera: a focal length of 500 px for a 640 x 480 image."""
    focal = (500 * width / 640 + 500 * height / 480) / 2
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])


def head_pose(faces: Faces) -> Pose:
    """Fits the average face's rigid points to the mesh's in the image (perspective-n-point, SQPnP; Terzakis 2020)."""
    camera = camera_matrix(*faces.size)
    rotations, translations = np.empty((len(faces.mesh), 3, 3)), np.empty((len(faces.mesh), 3))
    for row, points in enumerate(np.ascontiguousarray(faces.mesh[:, RIGID, :2], np.float64)):
        _, turn, shift = cv2.solvePnP(RIGID_FACE, points, camera, None, flags=cv2.SOLVEPNP_SQPNP)
        rotations[row], translations[row] = cv2.Rodrigues(turn)[0], shift[:, 0]
    return Pose(rotations, translations, camera)


def euler_angles(rotation: Floats) -> Floats:
    """Shape (N, 3): rotation about x (pitch), y (yaw) and z (roll) in radians, R = Rx Ry Rz as in OpenFace."""
    pitch = np.arctan2(-rotation[:, 1, 2], rotation[:, 2, 2])
    yaw = np.arcsin(np.clip(rotation[:, 0, 2], -1, 1))
    roll = np.arctan2(-rotation[:, 0, 1], rotation[:, 0, 0])
    return np.stack([pitch, yaw, roll], axis=1)


def gaze(faces: Faces, pose: Pose) -> Floats:
    """Shape (N, 2, 3): unit vectors from the right and the left eye to what they look at.

    The line of sight runs from the eyeball's centre, which sits behind the lids' corners and turns with the head,
    through the point of the eyeball at which the camera sees the iris. While an eye is shut it means nothing.
    """
    vectors = np.empty((len(faces.mesh), 2, 3))
    unproject = np.linalg.inv(pose.camera)
    for eye, lids in enumerate((RIGHT_LIDS, LEFT_LIDS)):
        corners = [lids[0], lids[8]]
        on_face = RIGID_FACE[np.isin(RIGID, corners)].mean(axis=0)
        depth = (pose.rotation @ on_face + pose.translation)[:, 2:]
        middle = faces.mesh[:, corners, :2].mean(axis=1)
        outwards, up, back = _EYE_CENTRE
        inside = np.array([np.sign(on_face[0]) * outwards, -up, back])
        centre = _rays(middle, unproject) * depth + pose.rotation @ inside
        sight = _rays(faces.iris[:, eye], unproject)
        sight /= np.linalg.norm(sight, axis=1, keepdims=True)
        # Nearer of the two points where the ray from the camera meets the sphere; the nearest where it misses it.
        along = (sight * centre).sum(axis=1)
        beside = (centre**2).sum(axis=1) - along**2
        seen = sight * (along - np.sqrt(np.clip(_IRIS_ORBIT**2 - beside, 0, None)))[:, None]
        vectors[:, eye] = (seen - centre) / np.linalg.norm(seen - centre, axis=1, keepdims=True)
    return vectors


def gaze_angles(vectors: Floats) -> Floats:
    """Shape (N, 2): mean of both eyes, left to right and up to down of the image, in radians, as in OpenFace."""
    x, y, z = vectors.mean(axis=1).T
    return np.stack([np.arctan2(x, -z), np.arctan2(y, -z)], axis=1)


def _rays(points: Floats, unproject: Floats) -> Floats:
    """Shape (N, 3): directions from the camera through image points (N, 2), with z = 1."""
    return np.column_stack([points, np.ones(len(points))]) @ unproject.T


def upright(mesh: Floats) -> Floats:
    """The mesh (N, 468, 3) without head pose: origin between the eyes, outer eye corners 1 apart, camera's axes.

    The rotation is the one that brings the rigid points onto the average face's best (Kabsch 1976).
    """
    points = mesh[:, RIGID].astype(np.float64)
    points -= points.mean(axis=1, keepdims=True)
    u, _, vt = np.linalg.svd(np.swapaxes(points, 1, 2) @ (RIGID_FACE - RIGID_FACE.mean(axis=0)))
    u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
    turned = (mesh - mesh[:, _CORNERS].mean(axis=1, keepdims=True)) @ (u @ vt)
    return turned / np.linalg.norm(turned[:, [33]] - turned[:, [263]], axis=2, keepdims=True)


def ibug_68(points: Floats) -> Floats:
    """Shape (N, 68, axes): the iBUG points of meshes (N, 468, axes)."""
    start = points[:, IBUG_68]
    return start + IBUG_SHARE[:, None] * (points[:, IBUG_NEXT] - start)


def landmarks_in_plane(mesh: Floats) -> Floats:
    """Shape (N, 68, 2): the iBUG points in the image, roll removed, origin between the eyes, inter-ocular distance 1.

    The distance is that of the outer eye corners in space, so that a turned head does not blow the face up.
    """
    across = mesh[:, 263] - mesh[:, 33]
    cos, sin = (across[:, :2] / np.linalg.norm(across[:, :2], axis=1, keepdims=True)).T
    level = np.stack([np.stack([cos, -sin], axis=1), np.stack([sin, cos], axis=1)], axis=1)
    centred = ibug_68(mesh[:, :, :2]) - mesh[:, _CORNERS, :2].mean(axis=1, keepdims=True)
    return centred @ level / np.linalg.norm(across, axis=1)[:, None, None]


def landmarks_in_space(mesh: Floats) -> Floats:
    """Shape (N, 68, 3): the iBUG points without head pose, see `upright`."""
    return ibug_68(upright(mesh))
