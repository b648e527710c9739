"""Judging masks: of images by cIoU and gIoU, of videos by J and F, and submissions to servers."""
