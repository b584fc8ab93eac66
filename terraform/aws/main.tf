# What the function needs of AWS: buckets, a queue of uploads, roles. knative/aws has the other half.
data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

data "aws_region" "current" {}

locals {
  account_id = data.aws_caller_identity.current.account_id
  region     = data.aws_region.current.name
  partition  = data.aws_partition.current.partition

  # One bucket for each kind of access, not one with prefixes. S3 answers a missing key with 403 unless the role may list the
  # bucket, and a condition on s3:prefix counts as "may not" there, so a missing model would look like a broken store.
  # Models and templates share one: both are only read, by the same pods.
  #
  # Results have no versions: a running job's beat is written every few seconds, the sweep lists what is open, which delete
  # markers would make slow, and what RETENTION_DAYS deleted must be gone.
  buckets = {
    models  = { versioned = true, expire_days = 0 }
    uploads = { versioned = true, expire_days = var.uploads_expire_days }
    results = { versioned = false, expire_days = var.results_expire_days }
  }

  # Which bucket the place of a setting is in; its prefix has the place's own name.
  places = { models = "models", uploads = "uploads", workflows = "models", results = "results" }

  bucket_arns = { for name, bucket in aws_s3_bucket.this : name => "arn:${local.partition}:s3:::${bucket.bucket}" }
  objects     = { for place, bucket in local.places : place => "${local.bucket_arns[bucket]}/${place}/*" }

  only_tls = {
    Sid       = "OnlyTls"
    Effect    = "Deny"
    Principal = "*"
    Condition = { Bool = { "aws:SecureTransport" = "false" } }
  }
}
