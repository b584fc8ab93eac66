mock_provider "aws" {
  source          = "./tests/mocks"
  override_during = plan
}

variables {
  cluster_name = "prod"
}

run "buckets_are_private_encrypted_for_tls_only_and_keep_what_is_replaced" {
  command = plan

  assert {
    condition = { for name, bucket in aws_s3_bucket.this : name => bucket.bucket } == {
      models  = "comfyfn-models-123456789012-eu-central-1"
      uploads = "comfyfn-uploads-123456789012-eu-central-1"
      results = "comfyfn-results-123456789012-eu-central-1"
    }
    error_message = "Buckets are named by account and region, because their names are the world's."
  }

  assert {
    condition     = alltrue([for bucket in values(aws_s3_bucket.this) : !bucket.force_destroy])
    error_message = "A bucket that is not empty outlives terraform destroy."
  }

  assert {
    condition = length(aws_s3_bucket_public_access_block.this) == 3 && alltrue([
      for block in values(aws_s3_bucket_public_access_block.this) : alltrue([
        block.block_public_acls, block.block_public_policy, block.ignore_public_acls, block.restrict_public_buckets,
      ])
    ])
    error_message = "Public access is blocked in all four ways."
  }

  assert {
    condition = length(aws_s3_bucket_ownership_controls.this) == 3 && alltrue([
      for controls in values(aws_s3_bucket_ownership_controls.this) : controls.rule[0].object_ownership == "BucketOwnerEnforced"
    ])
    error_message = "There are no ACLs."
  }

  assert {
    condition = length(aws_s3_bucket_server_side_encryption_configuration.this) == 3 && alltrue([
      for configuration in values(aws_s3_bucket_server_side_encryption_configuration.this) :
      one(one(configuration.rule).apply_server_side_encryption_by_default).sse_algorithm == "AES256"
    ])
    error_message = "Objects are encrypted with keys of S3."
  }

  assert {
    condition = { for name, policy in aws_s3_bucket_policy.this : name => jsondecode(policy.policy).Statement } == {
      for name in ["models", "uploads", "results"] : name => [{
        Sid       = "OnlyTls"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:*"
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
        Resource = [
          "arn:aws:s3:::comfyfn-${name}-123456789012-eu-central-1",
          "arn:aws:s3:::comfyfn-${name}-123456789012-eu-central-1/*",
        ]
      }]
    }
    error_message = "Requests without TLS are refused, for the bucket and for its objects."
  }
  assert {
    condition = { for name, versioning in aws_s3_bucket_versioning.this : name => versioning.versioning_configuration[0].status } == {
      models = "Enabled", uploads = "Enabled"
    }
    error_message = "Models and uploads have versions, results have none."
  }

  assert {
    condition = { for name, lifecycle in aws_s3_bucket_lifecycle_configuration.this : name => [for rule in lifecycle.rule : rule.id] } == {
      models  = ["incomplete-uploads", "noncurrent-versions"]
      uploads = ["incomplete-uploads", "noncurrent-versions"]
      results = ["incomplete-uploads"]
    }
    error_message = "By default only leftovers and old versions are deleted."
  }

  assert {
    condition = alltrue([for lifecycle in values(aws_s3_bucket_lifecycle_configuration.this) :
      lifecycle.rule[0].abort_incomplete_multipart_upload[0].days_after_initiation == 7
    ])
    error_message = "Incomplete multipart uploads are deleted after a week."
  }

  assert {
    condition     = aws_s3_bucket_lifecycle_configuration.this["models"].rule[1].noncurrent_version_expiration[0].noncurrent_days == 30
    error_message = "Old versions are kept for noncurrent_days."
  }
}

run "uploads_and_results_expire_on_demand" {
  command = plan

  variables {
    uploads_expire_days = 14
    results_expire_days = 90
    noncurrent_days     = 3
  }

  assert {
    condition     = [for rule in aws_s3_bucket_lifecycle_configuration.this["results"].rule : rule.expiration[0].days if rule.id == "expire"] == [90]
    error_message = "Results expire after results_expire_days."
  }

  assert {
    condition     = [for rule in aws_s3_bucket_lifecycle_configuration.this["uploads"].rule : rule.expiration[0].days if rule.id == "expire"] == [14]
    error_message = "Uploads expire after uploads_expire_days."
  }

  assert {
    condition     = !contains([for rule in aws_s3_bucket_lifecycle_configuration.this["models"].rule : rule.id], "expire")
    error_message = "Models never expire."
  }

  assert {
    condition     = aws_s3_bucket_lifecycle_configuration.this["uploads"].rule[1].noncurrent_version_expiration[0].noncurrent_days == 3
    error_message = "Old versions are kept for noncurrent_days."
  }
}

run "a_key_of_ones_own_encrypts_and_the_function_may_use_it_through_s3_only" {
  command = plan

  variables {
    kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/1"
  }

  assert {
    condition = alltrue([
      for configuration in values(aws_s3_bucket_server_side_encryption_configuration.this) :
      one(configuration.rule).bucket_key_enabled &&
      one(one(configuration.rule).apply_server_side_encryption_by_default).sse_algorithm == "aws:kms" &&
      one(one(configuration.rule).apply_server_side_encryption_by_default).kms_master_key_id == var.kms_key_arn
    ])
    error_message = "Every bucket uses the key, with a bucket key."
  }

  assert {
    condition = jsondecode(aws_iam_role_policy.this["function"].policy).Statement[3] == {
      Sid       = "UseTheBucketsKey"
      Effect    = "Allow"
      Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
      Resource  = [var.kms_key_arn]
      Condition = { StringEquals = { "kms:ViaService" = "s3.eu-central-1.amazonaws.com" } }
    }
    error_message = "The function may use that key, and only through S3."
  }
}
