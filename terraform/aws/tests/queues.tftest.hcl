mock_provider "aws" {
  source          = "./tests/mocks"
  override_during = plan
}

variables {
  cluster_name = "prod"
}

run "uploads_are_told_to_a_queue_that_takes_them_from_nobody_else_and_loses_none" {
  command = plan

  assert {
    condition = [for queue in aws_s3_bucket_notification.uploads.queue : [queue.events, queue.filter_prefix, queue.queue_arn]] == [
      [toset(["s3:ObjectCreated:*"]), "uploads/", aws_sqs_queue.uploads.arn],
    ]
    error_message = "New objects below uploads/ are told to the queue of uploads."
  }

  assert {
    condition     = aws_s3_bucket_notification.uploads.bucket == "comfyfn-uploads-123456789012-eu-central-1"
    error_message = "The bucket of uploads tells, the others don't."
  }

  assert {
    condition     = endswith(output.settings.UPLOADS_URL, "/${trimsuffix(aws_s3_bucket_notification.uploads.queue[0].filter_prefix, "/")}")
    error_message = "What is told is what lies under UPLOADS_URL."
  }
  assert {
    condition = jsondecode(aws_sqs_queue.uploads.policy).Statement == [
      {
        Sid       = "NoticesOfUploads"
        Effect    = "Allow"
        Principal = { Service = "s3.amazonaws.com" }
        Action    = "sqs:SendMessage"
        Resource  = "arn:aws:sqs:eu-central-1:123456789012:comfyfn-uploads"
        Condition = {
          ArnEquals    = { "aws:SourceArn" = "arn:aws:s3:::comfyfn-uploads-123456789012-eu-central-1" }
          StringEquals = { "aws:SourceAccount" = "123456789012" }
        }
      },
      {
        Sid       = "OnlyTls"
        Effect    = "Deny"
        Principal = "*"
        Action    = "sqs:*"
        Resource  = "arn:aws:sqs:eu-central-1:123456789012:comfyfn-uploads"
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      },
    ]
    error_message = "The policy of the queue of uploads."
  }

  assert {
    condition = [
      for queue in [aws_sqs_queue.uploads_dead_letters, aws_sqs_queue.dead_letters] :
      [for statement in jsondecode(queue.policy).Statement : [statement.Effect, statement.Resource, statement.Condition]]
      ] == [
      for name in ["comfyfn-uploads-dead-letters", "comfyfn-dead-letters"] :
      [["Deny", "arn:aws:sqs:eu-central-1:123456789012:${name}", { Bool = { "aws:SecureTransport" = "false" } }]]
    ]
    error_message = "The other queues let nobody in but roles of this account, by TLS."
  }

  assert {
    condition     = alltrue([for queue in [aws_sqs_queue.uploads, aws_sqs_queue.uploads_dead_letters, aws_sqs_queue.dead_letters] : queue.sqs_managed_sse_enabled])
    error_message = "Messages are encrypted."
  }
  assert {
    condition = jsondecode(aws_sqs_queue.uploads.redrive_policy) == {
      deadLetterTargetArn = aws_sqs_queue.uploads_dead_letters.arn
      maxReceiveCount     = 5
    }
    error_message = "After five tries a notice goes to the dead letters."
  }

  assert {
    condition     = aws_sqs_queue.uploads_dead_letters.message_retention_seconds > aws_sqs_queue.uploads.message_retention_seconds
    error_message = "A dead letter's age counts from the first queue, so it has to be kept for longer."
  }

  assert {
    condition     = aws_sqs_queue.uploads.visibility_timeout_seconds == yamldecode(file("../../knative/aws/uploads.yaml")).spec.aws.sqs.visibilityTimeout
    error_message = "The queue hides a notice for as long as knative/aws does."
  }

  assert {
    condition = [for queue in [aws_sqs_queue.uploads, aws_sqs_queue.dead_letters] : queue.name] == [
      for file in ["uploads.yaml", "dead-letter-queue.yaml"] : regex("sqs:[a-z0-9-]+:[0-9]+:([a-z-]+)", file("../../knative/aws/${file}"))[0]
    ]
    error_message = "The queues are called as in knative/aws."
  }
}
