locals {
  uses_pod_identity = var.cluster_name != null

  # The function and the API service: what function/storage/s3.py asks for, and no more.
  function_statements = [
    {
      Sid      = "FindObjects" # without it S3 answers a missing key with 403
      Effect   = "Allow"
      Action   = ["s3:ListBucket"]
      Resource = values(local.bucket_arns)
    },
    {
      Sid      = "ReadModelsUploadsAndTemplates"
      Effect   = "Allow"
      Action   = ["s3:GetObject"]
      Resource = [local.objects.models, local.objects.uploads, local.objects.workflows]
    },
    {
      Sid      = "KeepJobsInputsAndOutputs"
      Effect   = "Allow"
      Action   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
      Resource = [local.objects.results]
    },
  ]

  key_statements = [for key in var.kms_key_arn[*] : {
    Sid       = "UseTheBucketsKey"
    Effect    = "Allow"
    Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
    Resource  = [key]
    Condition = { StringEquals = { "kms:ViaService" = "s3.${local.region}.amazonaws.com" } }
  }]

  # IntegrationSource and IntegrationSink. Camel makes the queue's URL from its ARN, so it has nothing to look up.
  events_statements = [
    {
      Sid      = "TakeNoticesOfUploads"
      Effect   = "Allow"
      Action   = ["sqs:ReceiveMessage", "sqs:DeleteMessage"]
      Resource = [local.queue_arns.uploads]
    },
    {
      Sid      = "KeepDeadLetters"
      Effect   = "Allow"
      Action   = ["sqs:SendMessage"]
      Resource = [local.queue_arns.dead_letters]
    },
  ]

  roles = {
    function = { name = var.name, service_account = var.service_account }
    events   = { name = "${var.name}-events", service_account = "comfyfn-events" }
  }

  statements = {
    function = concat(local.function_statements, local.key_statements)
    events   = local.events_statements
  }

  cluster_arn = "arn:${local.partition}:eks:${local.region}:${local.account_id}:cluster/${var.cluster_name == null ? "" : var.cluster_name}"
  issuer      = local.uses_pod_identity ? "" : split(":oidc-provider/", var.oidc_provider_arn)[1] # oidc.eks.us-east-1.amazonaws.com/id/ABC

  # Who may take a role: pods of this service account. The tags are those that EKS Pod Identity gives to every session.
  pod_identity_trust = {
    for name, role in local.roles : name => {
      Effect    = "Allow"
      Principal = { Service = "pods.eks.amazonaws.com" }
      Action    = ["sts:AssumeRole", "sts:TagSession"]
      Condition = {
        StringEquals = {
          "aws:RequestTag/eks-cluster-arn"            = local.cluster_arn
          "aws:RequestTag/kubernetes-namespace"       = var.namespace
          "aws:RequestTag/kubernetes-service-account" = role.service_account
        }
      }
    }
  }

  web_identity_trust = {
    for name, role in local.roles : name => {
      Effect    = "Allow"
      Principal = { Federated = var.oidc_provider_arn }
      Action    = ["sts:AssumeRoleWithWebIdentity"]
      Condition = {
        StringEquals = {
          "${local.issuer}:aud" = "sts.amazonaws.com"
          "${local.issuer}:sub" = "system:serviceaccount:${var.namespace}:${role.service_account}"
        }
      }
    }
  }

  trust = {
    for name in keys(local.roles) : name => jsonencode({
      Version   = "2012-10-17"
      Statement = [for uses in [local.uses_pod_identity] : uses ? local.pod_identity_trust[name] : local.web_identity_trust[name]]
    })
  }
}

resource "aws_iam_role" "this" {
  for_each = local.roles

  name               = "${each.value.name}-${local.region}" # roles are of the account, everything else of the region
  assume_role_policy = local.trust[each.key]
}

resource "aws_iam_role_policy" "this" {
  for_each = local.roles

  name   = each.key
  role   = aws_iam_role.this[each.key].id
  policy = jsonencode({ Version = "2012-10-17", Statement = local.statements[each.key] })
}

resource "aws_eks_pod_identity_association" "this" {
  for_each = local.uses_pod_identity ? local.roles : {}

  cluster_name    = var.cluster_name
  namespace       = var.namespace
  service_account = each.value.service_account
  role_arn        = aws_iam_role.this[each.key].arn
}
