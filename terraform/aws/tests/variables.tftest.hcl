# What is refused, before anything is asked of AWS.
mock_provider "aws" {
  source = "./tests/mocks"
}

run "names_and_numbers_that_are_none" {
  command = plan

  variables {
    cluster_name        = "prod"
    name                = "Comfy_Fn"
    namespace           = "*"
    service_account     = "*"
    kms_key_arn         = "arn:aws:kms:eu-central-1:123456789012:alias/comfyfn"
    noncurrent_days     = 0
    uploads_expire_days = -1
    results_expire_days = 1.5
  }

  expect_failures = [
    var.name,
    var.namespace,
    var.service_account,
    var.kms_key_arn,
    var.noncurrent_days,
    var.uploads_expire_days,
    var.results_expire_days,
  ]
}

run "the_longest_name_makes_names_that_buckets_can_have" {
  command = plan

  variables {
    cluster_name = "prod"
    name         = "comfyfn-of-all-of-us"
  }

  assert {
    condition     = alltrue([for bucket in values(aws_s3_bucket.this) : length(bucket.bucket) <= 63])
    error_message = "A bucket's name has at most 63 characters."
  }
}

run "two_ways_to_the_roles" {
  command = plan

  variables {
    cluster_name      = "prod"
    oidc_provider_arn = "arn:aws:iam::123456789012:oidc-provider/oidc.eks.eu-central-1.amazonaws.com/id/ABC"
  }

  expect_failures = [var.cluster_name]
}

run "no_way_to_the_roles" {
  command = plan

  expect_failures = [var.cluster_name]
}

run "an_issuer_in_place_of_a_provider" {
  command = plan

  variables {
    oidc_provider_arn = "https://oidc.eks.eu-central-1.amazonaws.com/id/ABC"
  }

  expect_failures = [var.oidc_provider_arn]
}
