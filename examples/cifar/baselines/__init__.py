"""Methods that ACL is compared with, for pre-training (Selfie) and for semi-supervised training (UAT)."""
