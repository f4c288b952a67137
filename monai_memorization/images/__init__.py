# SPDX-License-Identifier: Apache-2.0
"""Image sets: what is audited, and how one image is read."""
