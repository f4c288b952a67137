# SPDX-License-Identifier: Apache-2.0
"""The copy detector: an encoder trained on the training set, and exact search."""
