variable "name" {
  description = "Begins the name of everything that is made."
  type        = string
  default     = "comfyfn"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "name must have 3 to 20 lower case letters, digits and hyphens and begin with a letter: names of buckets are made from it."
  }
}

variable "cluster_name" {
  description = "EKS cluster whose pods get the roles by EKS Pod Identity; give it or oidc_provider_arn."
  type        = string
  default     = null

  validation {
    condition     = (var.cluster_name == null) != (var.oidc_provider_arn == null)
    error_message = "Set one of cluster_name (EKS Pod Identity) and oidc_provider_arn (IAM roles for service accounts)."
  }
}

variable "oidc_provider_arn" {
  description = "IAM's OpenID Connect provider of the cluster, for IAM roles for service accounts in place of EKS Pod Identity."
  type        = string
  default     = null

  validation {
    condition     = var.oidc_provider_arn == null || can(regex("^arn:[^:]+:iam::[0-9]{12}:oidc-provider/.+$", var.oidc_provider_arn))
    error_message = "oidc_provider_arn must look like arn:aws:iam::123456789012:oidc-provider/oidc.eks.us-east-1.amazonaws.com/id/ABC."
  }
}

variable "namespace" {
  description = "Kubernetes namespace of the function; DISPATCH_URL has it too (knative/README.md)."
  type        = string
  default     = "comfyfn"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", var.namespace))
    error_message = "namespace must be a Kubernetes name: lower case letters, digits and hyphens, at most 63."
  }
}

variable "service_account" {
  description = "Service account of the function and the API service; `default` for the manifests in k8s/."
  type        = string
  default     = "comfyfn"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$", var.service_account))
    error_message = "service_account must be a Kubernetes name: lower case letters, digits, hyphens and dots; a pattern is no name."
  }
}

variable "kms_key_arn" {
  description = "KMS key of the buckets; its policy must let the roles of this module use it. Default: keys of S3 (AES256)."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key_arn == null || can(regex("^arn:[^:]+:kms:[^:]+:[0-9]{12}:key/.+$", var.kms_key_arn))
    error_message = "kms_key_arn must be the ARN of a key (arn:aws:kms:...:key/...), not an alias: the roles are allowed that key."
  }
}

variable "noncurrent_days" {
  description = "Days for which replaced and deleted models, templates and uploads can be brought back."
  type        = number
  default     = 30
  nullable    = false

  validation {
    condition     = var.noncurrent_days >= 1 && floor(var.noncurrent_days) == var.noncurrent_days
    error_message = "noncurrent_days must be a whole number of days, at least 1."
  }
}

variable "uploads_expire_days" {
  description = "Days after which an upload is deleted; 0: never. Longer than any job waits."
  type        = number
  default     = 0
  nullable    = false

  validation {
    condition     = var.uploads_expire_days >= 0 && floor(var.uploads_expire_days) == var.uploads_expire_days
    error_message = "uploads_expire_days must be a whole number of days, or 0 for never."
  }
}

variable "results_expire_days" {
  description = "Days after which S3 deletes whatever is under RESULTS_URL; 0: never. RETENTION_DAYS of the function knows jobs and comes first: make this one longer."
  type        = number
  default     = 0
  nullable    = false

  validation {
    condition     = var.results_expire_days >= 0 && floor(var.results_expire_days) == var.results_expire_days
    error_message = "results_expire_days must be a whole number of days, or 0 for never."
  }
}

variable "force_destroy" {
  description = "Whether `terraform destroy` deletes buckets with all that is in them."
  type        = bool
  default     = false
  nullable    = false
}
