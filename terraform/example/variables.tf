variable "region" {
  description = "AWS region."
  type        = string
  default     = "us-east-1"
}

variable "name" {
  description = "Begins the name of everything that is made."
  type        = string
  default     = "comfyfn"
}

variable "cluster_name" {
  description = "EKS cluster with the add-on eks-pod-identity-agent; or give oidc_provider_arn."
  type        = string
  default     = null
}

variable "oidc_provider_arn" {
  description = "OpenID Connect provider of the cluster, in place of cluster_name."
  type        = string
  default     = null
}

variable "manifests" {
  description = "Path of knative/aws, as seen from the directory where kustomization.yaml will lie."
  type        = string
  default     = "../comfyfn/knative/aws"
}

variable "force_destroy" {
  description = "Whether `terraform destroy` deletes buckets with all that is in them."
  type        = bool
  default     = false
}
