locals {
  queue_names = {
    uploads              = "${var.name}-uploads"
    uploads_dead_letters = "${var.name}-uploads-dead-letters"
    dead_letters         = "${var.name}-dead-letters"
  }

  # Made from names, so that a queue has its policy from its first second, and a plan shows it whole.
  queue_arns = {
    for key, name in local.queue_names : key => "arn:${local.partition}:sqs:${local.region}:${local.account_id}:${name}"
  }

  queue_only_tls = {
    for key, arn in local.queue_arns : key => merge(local.only_tls, { Action = "sqs:*", Resource = arn })
  }

  # S3 and nobody else, for this bucket of this account: its name alone could pass to another account one day.
  notices = {
    Sid       = "NoticesOfUploads"
    Effect    = "Allow"
    Principal = { Service = "s3.amazonaws.com" }
    Action    = "sqs:SendMessage"
    Resource  = local.queue_arns.uploads
    Condition = {
      ArnEquals    = { "aws:SourceArn" = local.bucket_arns.uploads }
      StringEquals = { "aws:SourceAccount" = local.account_id }
    }
  }

  fourteen_days_seconds = 14 * 24 * 60 * 60 # the longest that SQS keeps a message
}

# Notices of uploads, for the IntegrationSource of knative/aws.
resource "aws_sqs_queue" "uploads" {
  name                       = local.queue_names.uploads
  policy                     = jsonencode({ Version = "2012-10-17", Statement = [local.notices, local.queue_only_tls.uploads] })
  sqs_managed_sse_enabled    = true
  message_retention_seconds  = 4 * 24 * 60 * 60 # shorter than that of the dead letters, whose age counts from the first queue
  receive_wait_time_seconds  = 20
  visibility_timeout_seconds = 900 # as the source's: longer than a delivery through the broker

  redrive_policy = jsonencode({
    deadLetterTargetArn = aws_sqs_queue.uploads_dead_letters.arn
    maxReceiveCount     = 5
  })
}

# Notices that the source could not deliver to the broker; `aws sqs start-message-move-task` sends them again.
resource "aws_sqs_queue" "uploads_dead_letters" {
  name                      = local.queue_names.uploads_dead_letters
  policy                    = jsonencode({ Version = "2012-10-17", Statement = [local.queue_only_tls.uploads_dead_letters] })
  sqs_managed_sse_enabled   = true
  message_retention_seconds = local.fourteen_days_seconds
}

# Events that the broker gave up, from the IntegrationSink of knative/aws.
resource "aws_sqs_queue" "dead_letters" {
  name                      = local.queue_names.dead_letters
  policy                    = jsonencode({ Version = "2012-10-17", Statement = [local.queue_only_tls.dead_letters] })
  sqs_managed_sse_enabled   = true
  message_retention_seconds = local.fourteen_days_seconds
}

# S3 tries the queue when the notification is made, so the queue and its policy come first.
resource "aws_s3_bucket_notification" "uploads" {
  bucket = aws_s3_bucket.this["uploads"].bucket

  queue {
    id            = "uploads"
    queue_arn     = aws_sqs_queue.uploads.arn
    events        = ["s3:ObjectCreated:*"]
    filter_prefix = "uploads/"
  }
}
