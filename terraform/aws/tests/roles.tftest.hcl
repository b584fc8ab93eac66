mock_provider "aws" {
  source          = "./tests/mocks"
  override_during = plan
}

variables {
  cluster_name = "prod"
}

run "each_role_may_what_its_pods_do_and_no_more" {
  command = plan

  assert {
    condition = jsondecode(aws_iam_role_policy.this["function"].policy).Statement == [
      {
        Sid    = "FindObjects"
        Effect = "Allow"
        Action = ["s3:ListBucket"]
        Resource = [
          "arn:aws:s3:::comfyfn-models-123456789012-eu-central-1",
          "arn:aws:s3:::comfyfn-results-123456789012-eu-central-1",
          "arn:aws:s3:::comfyfn-uploads-123456789012-eu-central-1",
        ]
      },
      {
        Sid    = "ReadModelsUploadsAndTemplates"
        Effect = "Allow"
        Action = ["s3:GetObject"]
        Resource = [
          "arn:aws:s3:::comfyfn-models-123456789012-eu-central-1/models/*",
          "arn:aws:s3:::comfyfn-uploads-123456789012-eu-central-1/uploads/*",
          "arn:aws:s3:::comfyfn-models-123456789012-eu-central-1/workflows/*",
        ]
      },
      {
        Sid      = "KeepJobsInputsAndOutputs"
        Effect   = "Allow"
        Action   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
        Resource = ["arn:aws:s3:::comfyfn-results-123456789012-eu-central-1/results/*"]
      },
    ]
    error_message = "The function reads models, uploads and templates and writes results only."
  }

  assert {
    condition = [for statement in jsondecode(aws_iam_role_policy.this["events"].policy).Statement : [statement.Action, statement.Resource]] == [
      [["sqs:ReceiveMessage", "sqs:DeleteMessage"], ["arn:aws:sqs:eu-central-1:123456789012:comfyfn-uploads"]],
      [["sqs:SendMessage"], ["arn:aws:sqs:eu-central-1:123456789012:comfyfn-dead-letters"]],
    ]
    error_message = "Source and sink take notices, leave dead letters, and touch no object."
  }

  assert {
    condition     = alltrue([for role, policy in aws_iam_role_policy.this : policy.role == aws_iam_role.this[role].id])
    error_message = "Each role has its own policy."
  }
}

run "pod_identity_gives_a_role_to_one_service_account_of_one_cluster" {
  command = plan

  assert {
    condition = { for role, trust in aws_iam_role.this : role => jsondecode(trust.assume_role_policy).Statement } == {
      for role, account in { function = "comfyfn", events = "comfyfn-events" } : role => [{
        Effect    = "Allow"
        Principal = { Service = "pods.eks.amazonaws.com" }
        Action    = ["sts:AssumeRole", "sts:TagSession"]
        Condition = {
          StringEquals = {
            "aws:RequestTag/eks-cluster-arn"            = "arn:aws:eks:eu-central-1:123456789012:cluster/prod"
            "aws:RequestTag/kubernetes-namespace"       = "comfyfn"
            "aws:RequestTag/kubernetes-service-account" = account
          }
        }
      }]
    }
    error_message = "A role is for its service account of this cluster."
  }

  assert {
    condition = {
      for role, link in aws_eks_pod_identity_association.this : role => [link.cluster_name, link.namespace, link.service_account]
      } == {
      function = ["prod", "comfyfn", "comfyfn"]
      events   = ["prod", "comfyfn", "comfyfn-events"]
    }
    error_message = "EKS gives the roles to the service accounts of the manifests."
  }

  assert {
    condition = alltrue([
      for patch in output.kustomize_patches : jsondecode(patch.patch)[0].value == {} if patch.target.kind == "ServiceAccount"
    ])
    error_message = "The annotation that the SDKs would prefer is taken away."
  }
}

run "roles_for_service_accounts_name_the_provider_and_the_account" {
  command = plan

  variables {
    cluster_name      = null
    oidc_provider_arn = "arn:aws:iam::123456789012:oidc-provider/oidc.eks.eu-central-1.amazonaws.com/id/ABC"
    namespace         = "pictures"
    service_account   = "painter"
  }

  assert {
    condition = { for role, trust in aws_iam_role.this : role => jsondecode(trust.assume_role_policy).Statement } == {
      for role, account in { function = "painter", events = "comfyfn-events" } : role => [{
        Effect    = "Allow"
        Principal = { Federated = var.oidc_provider_arn }
        Action    = ["sts:AssumeRoleWithWebIdentity"]
        Condition = {
          StringEquals = {
            "oidc.eks.eu-central-1.amazonaws.com/id/ABC:aud" = "sts.amazonaws.com"
            "oidc.eks.eu-central-1.amazonaws.com/id/ABC:sub" = "system:serviceaccount:pictures:${account}"
          }
        }
      }]
    }
    error_message = "A token of that provider for that service account, and for STS."
  }

  assert {
    condition     = length(aws_eks_pod_identity_association.this) == 0
    error_message = "There is one way to a role, not two."
  }

  assert {
    condition = [
      for patch in output.kustomize_patches : jsondecode(patch.patch)[0].value if patch.target.kind == "ServiceAccount"
      ] == [
      for role in ["function", "events"] : { "eks.amazonaws.com/role-arn" = aws_iam_role.this[role].arn }
    ]
    error_message = "The service accounts name their roles."
  }
}

run "settings_are_those_that_the_manifests_leave_open" {
  command = plan

  assert {
    condition = output.settings == {
      MODELS_URL    = "s3://comfyfn-models-123456789012-eu-central-1/models"
      UPLOADS_URL   = "s3://comfyfn-uploads-123456789012-eu-central-1/uploads"
      WORKFLOWS_URL = "s3://comfyfn-models-123456789012-eu-central-1/workflows"
      RESULTS_URL   = "s3://comfyfn-results-123456789012-eu-central-1/results"
      AWS_REGION    = "eu-central-1"
    }
    error_message = "Settings name buckets and prefixes."
  }

  assert {
    condition     = length(setsubtract(keys(output.settings), keys(yamldecode(file("../../knative/base/settings.yaml")).data))) == 0
    error_message = "Every one has a place in knative/base/settings.yaml."
  }
}
