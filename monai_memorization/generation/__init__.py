# SPDX-License-Identifier: Apache-2.0
"""Train and sample latent diffusion models."""
