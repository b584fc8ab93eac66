locals {
  settings = merge(
    { for place, bucket in local.places : "${upper(place)}_URL" => "s3://${aws_s3_bucket.this[bucket].bucket}/${place}" },
    { AWS_REGION = local.region },
  )

  # With EKS Pod Identity there must be no annotation: the SDKs would prefer the role that it names.
  annotations = {
    for name, role in aws_iam_role.this : name => local.uses_pod_identity ? {} : { "eks.amazonaws.com/role-arn" = role.arn }
  }
}

output "settings" {
  description = "Environment of the function and the API service."
  value       = local.settings
}

output "buckets" {
  description = "Names of the buckets of models (with templates), uploads and results."
  value       = { for name, bucket in aws_s3_bucket.this : name => bucket.bucket }
}

output "function_role_arn" {
  description = "Role of the function and the API service."
  value       = aws_iam_role.this["function"].arn
}

output "events_role_arn" {
  description = "Role of Knative's IntegrationSource and IntegrationSink."
  value       = aws_iam_role.this["events"].arn
}

output "uploads_queue_arn" {
  description = "Queue of the notices of uploads."
  value       = aws_sqs_queue.uploads.arn
}

output "uploads_dead_letters_queue_arn" {
  description = "Queue of the notices that never reached the broker."
  value       = aws_sqs_queue.uploads_dead_letters.arn
}

output "dead_letters_queue_arn" {
  description = "Queue of the events that the broker gave up."
  value       = aws_sqs_queue.dead_letters.arn
}

output "kustomize_patches" {
  description = "Kustomize patches that put settings, roles and queues into knative/aws."
  value = [
    for patch in [
      {
        target = { kind = "ConfigMap", name = "comfyfn-settings" }
        values = { for name, value in local.settings : "/data/${name}" => value }
      },
      {
        target = { kind = "ServiceAccount", name = "comfyfn" }
        values = { "/metadata/annotations" = local.annotations.function }
      },
      {
        target = { kind = "ServiceAccount", name = "comfyfn-events" }
        values = { "/metadata/annotations" = local.annotations.events }
      },
      {
        target = { kind = "IntegrationSource", name = "comfyfn-uploads" }
        values = { "/spec/aws/sqs/arn" = aws_sqs_queue.uploads.arn, "/spec/aws/sqs/region" = local.region }
      },
      {
        target = { kind = "IntegrationSink", name = "comfyfn-dead-letters" }
        values = { "/spec/aws/sqs/arn" = aws_sqs_queue.dead_letters.arn, "/spec/aws/sqs/region" = local.region }
      },
      ] : {
      target = patch.target
      patch  = jsonencode([for path, value in patch.values : { op = "replace", path = path, value = value }])
    }
  ]
}
