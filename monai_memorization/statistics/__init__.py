# SPDX-License-Identifier: Apache-2.0
"""What the scores mean: both protocols, power and verdict, on plain tensors."""
