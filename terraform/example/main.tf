# Everything comfyfn needs in one region of one account, for an EKS cluster that is there. State is local: add a backend.
terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.0"
    }
  }
}

provider "aws" {
  region = var.region

  default_tags {
    tags = { project = "comfyfn" }
  }
}

module "comfyfn" {
  source = "../aws"

  name                = var.name
  cluster_name        = var.cluster_name
  oidc_provider_arn   = var.oidc_provider_arn
  uploads_expire_days = 30
  force_destroy       = var.force_destroy
}
